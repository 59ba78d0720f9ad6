"""Learning from preferences: what a preference is made into, the losses, and the offline agents."""
