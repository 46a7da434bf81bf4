"""Search over how encoders are trained and over detectors on their features, with Ray Tune and Optuna."""
