"""What tests share: peers, leaks, patterns."""
