"""What happened: facts about trials, and the folder that keeps them."""
