"""The query process: answers counts, edges and lists, counts from memory."""
