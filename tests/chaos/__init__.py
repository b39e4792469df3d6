"""Everything that can die is killed while rows are written; in the end each vector is that of its row's last text."""
