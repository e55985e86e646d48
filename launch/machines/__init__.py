"""What a layout needs of given machines, by arithmetic: memory, time, and which layouts work."""
