"""Translation of task data by a language model: the stages of the sweep `translate_api_calling`."""
