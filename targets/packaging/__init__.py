"""What is kept of a compiled model: the artifact, the bundle for boards, and the manifest that both contain."""
