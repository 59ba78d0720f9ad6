"""What is settled before an agent is made: arguments, the task's settings, the starting policy."""
