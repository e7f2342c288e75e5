"""Many users at once: the scheduler, the routes, the page."""
