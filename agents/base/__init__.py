"""What all agents share: the agent, its training loops, callbacks, the registry."""
