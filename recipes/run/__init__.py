"""What every recipe shares: flags and the command line, the run with its folder and `fit`, scores, plots and facts."""
