"""Tables and figures of papers, each made by `sbi-boed reproduce NAME`."""
