"""HTTP borders: read the request, call one service, turn its errors into a status. No decisions of their own."""
