"""Files in all their forms: of texts, reached from `helpers.data`, and of models, reached from `helpers.models`."""
