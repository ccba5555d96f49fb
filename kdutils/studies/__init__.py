"""Long studies: their arms, their cells, their records."""
