"""The online half: scores images, stores verdicts, queues inspections for review. Scoring never imports torch."""
