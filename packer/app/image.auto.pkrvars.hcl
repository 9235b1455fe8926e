image = "app"
