"""What a notebook's run needs: checked parameters, records, model cards, and models that one makes for the next."""
