"""MG-3D workbench: vision-language pre-training on chest CT volumes and their radiology reports."""
