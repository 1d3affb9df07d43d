"""What people come for: each task is one Python call and one job."""
