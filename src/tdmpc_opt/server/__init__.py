"""An agent behind a WebSocket, for programs on other machines or in other languages."""
