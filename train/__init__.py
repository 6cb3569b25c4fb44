"""Training and evaluation: recipes, data sets, one loop, and a bundle's figures on its data set's split."""
