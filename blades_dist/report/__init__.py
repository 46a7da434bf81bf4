"""Pages, figures and tables that every report is made of; imports nothing of what is reported on."""
