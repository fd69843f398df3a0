"""Google Kubernetes Engine: node pools of TPU slices, and `lacy train` on them as a JobSet."""
