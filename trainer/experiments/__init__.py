"""Fair comparisons: many small runs by one loop on the same text, and what they show. Free of torch unless noted."""
