"""From labelled text to a bundle: base model, data, fine-tuning, export, evaluation. Torch lives only here."""
