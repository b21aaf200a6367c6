"""Tables and figures of papers, each made by `make reproduce NAME=NAME`."""
