"""One recipe from data to measured file. Needs neither ray nor mlflow: it also runs alone and under torchrun."""
