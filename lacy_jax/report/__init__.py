"""Reads run directories and draws: tables, charts, marked texts, one HTML page. Never models."""
