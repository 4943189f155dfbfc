"""PostgreSQL: how its connections are opened, what its errors mean, which log it holds."""
