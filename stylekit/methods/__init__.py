"Ways to match a style: SMS, the arithmetic its authors released, and rivals"
