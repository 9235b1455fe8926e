image = "base"
