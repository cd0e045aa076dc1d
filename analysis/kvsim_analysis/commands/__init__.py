"""One module per subcommand of kvsim-plot: NAME, SUMMARY, EXAMPLES, add_arguments(parser), run(arguments)."""
