"""The weights of Keras' layers as an adapter sees them."""
