"""Reports from run directories: tables, charts, marked texts, one HTML page. This room opens no models."""
