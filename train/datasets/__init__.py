"""The public data sets the shipped models are trained on and measured with. numpy and pandas only: no torch here."""
