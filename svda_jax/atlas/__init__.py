"""What each direction of a head's score is for."""
