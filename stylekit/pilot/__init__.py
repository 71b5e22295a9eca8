"A pilot in which people decide: what their votes show, studies and their analysis"
