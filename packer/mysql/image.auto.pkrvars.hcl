image = "mysql"
