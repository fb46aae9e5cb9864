"""A seeded synthetic chest-CT cohort whose every sentence has a ground-truth mask, in the file layout of CT-RATE."""
