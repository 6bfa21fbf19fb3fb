"""The latent decoder: network, autoencoder, noise levels, guidance, samplers, training."""
