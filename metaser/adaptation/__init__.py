"""A model in use: trained, adapted to a language, used for predictions, evaluated."""
