"""The paper's figures and tables, redone: one small file each, over one common laboratory."""
