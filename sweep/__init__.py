"""The cheapest cloud setup that can really fine-tune a model: memory, time and price, swept."""
