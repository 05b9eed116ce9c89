"""Where models come from: a MODEL argument goes in, a folder in Hugging Face form comes out (`sources`)."""
