image = "redis"
