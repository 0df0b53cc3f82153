"""What a trained model is worth: held-out bits per byte beside known baselines, and the tasks it was trained to do."""
