"""The only place that talks to a language model: a question in, an answer out, on a server or in process."""
