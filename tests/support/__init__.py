"""What the tests share: clocks, stores and draws that do as they are told, servers, processes, and ways to wait."""
