image = "lb"
