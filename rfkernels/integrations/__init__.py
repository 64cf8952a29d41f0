"""What joins the library to others, one thin module per ecosystem; each imports its own packages when it is used."""
