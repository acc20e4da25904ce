"""Encryption of disks, shared by the drivers of encrypted images: ciphers, key splitting, the LUKS volume."""
