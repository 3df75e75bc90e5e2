"""The online half: scores images, keeps verdicts, shows people what to review. Scoring never imports torch."""
