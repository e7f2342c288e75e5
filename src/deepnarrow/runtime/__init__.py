"""The network again, for speed: converted files, the native library, searches over its steps. No torch."""
